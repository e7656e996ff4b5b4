"""What machines cost: by workflow, offer, experiment; rework, idle time, what on-demand would cost.

A machine belongs to the workflow it was launched for. What is open is kept too, so that a new
leader finds machines that ended while nobody looked. It is stored in parts, for no value of etcd
may exceed 1.5 MiB: machines by the thousand, and one account a workflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

ENDED = 500
EXPERIMENTS = 2_000  # of a workflow that are kept apart; the rest are one
REST = ""
MACHINES_A_PART = 1_000
_MACHINES, _ACCOUNTS, _EXPERIMENTS = "machines/", "accounts/", "experiments/"
_DIGITS = 9


@dataclass(slots=True)
class Machine:
    """One that is paid for."""

    offer: str
    workflow: str
    experiment: str
    provider: str
    spot: bool
    usd_h: float
    on_demand_usd_h: float
    slots: int
    launched: float
    seen: float
    ready: float = 0.0  # when its worker came; 0: it has not
    provider_id: str = ""  # "": the launch has not been answered
    ending: bool = False
    noticed: bool = False  # its provider has said that it takes it away
    egress_usd_gb: float = 0.0  # between it and storage


@dataclass(slots=True)
class Account:
    """Sums of one workflow on one offer."""

    usd: float = 0.0  # machines and egress
    machine_h: float = 0.0
    on_demand_usd: float = 0.0  # what the same hours would have cost on demand
    rework_s: float = 0.0
    rework_usd: float = 0.0
    busy_slot_s: float = 0.0
    slot_s: float = 0.0
    idle_usd: float = 0.0
    egress_usd: float = 0.0
    launches: int = 0
    preemptions: int = 0


@dataclass(slots=True)
class Ledger:
    """All of it."""

    machines: dict[str, Machine] = field(default_factory=dict)
    accounts: dict[str, dict[str, Account]] = field(default_factory=dict)  # workflow -> offer
    experiments: dict[str, dict[str, Account]] = field(default_factory=dict)  # workflow -> its
    ended: dict[str, Machine] = field(default_factory=dict)  # lately; what was lost is still told

    def account(self, workflow: str, offer: str) -> Account:
        """Made when first needed."""
        return self.accounts.setdefault(workflow, {}).setdefault(offer, Account())

    def _accounts(self, machine: Machine) -> tuple[Account, Account]:
        """Those of its offer and of its experiment."""
        mine = self.experiments.setdefault(machine.workflow, {})
        name = machine.experiment
        if name not in mine and len(mine) >= EXPERIMENTS:
            name = REST
        return self.account(machine.workflow, machine.offer), mine.setdefault(name, Account())

    def open(self, name: str, machine: Machine) -> None:
        """A launch is asked for."""
        self.machines[name] = machine
        for account in self._accounts(machine):
            account.launches += 1

    def see(self, name: str, now: float, busy_slots: float) -> None:
        """The machine is there; pay until now.

        Args:
            name: of the machine.
            now: seconds since 1970.
            busy_slots: of its slots that had work since it was seen last.
        """
        machine = self.machines[name]
        passed_s = max(0.0, now - machine.seen)
        usd = passed_s / 3600 * machine.usd_h
        busy = min(max(busy_slots, 0.0), machine.slots)
        for account in self._accounts(machine):
            account.usd += usd
            account.machine_h += passed_s / 3600
            account.on_demand_usd += passed_s / 3600 * machine.on_demand_usd_h
            account.slot_s += passed_s * machine.slots
            account.busy_slot_s += passed_s * busy
            account.idle_usd += usd * (1.0 - busy / machine.slots)
        machine.seen = max(machine.seen, now)

    def close(self, name: str, *, preempted: bool) -> None:
        """The machine is gone."""
        machine = self.ended[name] = self.machines.pop(name)
        while len(self.ended) > ENDED:
            del self.ended[next(iter(self.ended))]
        for account in self._accounts(machine):
            account.preemptions += preempted

    def rework(self, name: str, seconds: float) -> Machine | None:
        """Work of one slot was lost with the machine; which that was, if it is known."""
        machine = self.machines.get(name) or self.ended.get(name)
        if machine is None:
            return None
        for account in self._accounts(machine):
            account.rework_s += seconds
            account.rework_usd += seconds / 3600 * machine.usd_h / machine.slots
        return machine

    def carry(self, name: str, size: int) -> tuple[str, float] | None:
        """Data went between a machine and storage; the machine's offer and the USD, if known."""
        machine = self.machines.get(name) or self.ended.get(name)
        if machine is None:
            return None
        usd = size / 1e9 * machine.egress_usd_gb
        for account in self._accounts(machine):
            account.egress_usd += usd
            account.usd += usd
            account.on_demand_usd += usd  # an on-demand machine of the offer would pay it too
        return machine.offer, usd

    def spent_usd(self, workflow: str) -> float:
        """Of a workflow until now."""
        return sum(each.usd for each in self.accounts.get(workflow, {}).values())

    def forget(self, workflows: set[str]) -> None:
        """Accounts of these alone are kept."""
        owned = {each.workflow for each in self.machines.values()}
        for accounts in (self.accounts, self.experiments):
            for name in accounts.keys() - workflows - owned:
                del accounts[name]

    def parts(self) -> dict[str, Any]:
        """As JSON has it, by name; accounts first: a machine's are paid twice rather than not."""
        found: dict[str, Any] = {}
        for prefix, accounts in ((_ACCOUNTS, self.accounts), (_EXPERIMENTS, self.experiments)):
            found |= {f"{prefix}{workflow}": _plain(mine) for workflow, mine in accounts.items()}
        names = list(self.machines)
        for start in range(0, len(names), MACHINES_A_PART):
            batch = names[start : start + MACHINES_A_PART]
            part = {name: asdict(self.machines[name]) for name in batch}
            found[f"{_MACHINES}{start // MACHINES_A_PART}"] = part
        return found

    @staticmethod
    def of(parts: Mapping[str, Any]) -> Ledger:
        """What `parts` gave."""
        ledger = Ledger()
        for part, plain in sorted(parts.items()):
            if part.startswith(_MACHINES):
                ledger.machines |= {name: Machine(**each) for name, each in plain.items()}
            for prefix, accounts in (
                (_ACCOUNTS, ledger.accounts), (_EXPERIMENTS, ledger.experiments),
            ):  # fmt: skip
                if part.startswith(prefix):
                    mine = {name: Account(**each) for name, each in plain.items()}
                    accounts[part.removeprefix(prefix)] = mine
        return ledger


def _plain(accounts: dict[str, Account]) -> dict[str, Any]:
    """Without what is 0, and without digits that mean nothing: it is written again and again."""
    return {
        name: {key: round(each, _DIGITS) for key, each in asdict(account).items() if each}
        for name, account in accounts.items()
    }
