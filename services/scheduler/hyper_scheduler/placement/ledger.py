"""What machines cost: by workflow, offer, experiment; rework, idle time, what on-demand would cost.

A machine belongs to the workflow it was launched for. What is open is kept too, so that a new
leader finds machines that ended while nobody looked.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

ENDED = 500
EXPERIMENTS = 2_000  # that are kept apart: all of it is one value of etcd
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


@dataclass(slots=True)
class Account:
    """Sums of one workflow on one offer."""

    usd: float = 0.0
    machine_h: float = 0.0
    on_demand_usd: float = 0.0  # what the same hours would have cost on demand
    rework_s: float = 0.0
    rework_usd: float = 0.0
    busy_slot_s: float = 0.0
    slot_s: float = 0.0
    idle_usd: float = 0.0
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
        if machine.experiment not in mine:
            mine[machine.experiment] = Account()
            while len(self.experiments) > 1 and self._kept_apart() > EXPERIMENTS:
                del self.experiments[next(each for each in self.experiments
                                          if each != machine.workflow)]  # fmt: skip
        return self.account(machine.workflow, machine.offer), mine[machine.experiment]

    def _kept_apart(self) -> int:
        return sum(map(len, self.experiments.values()))

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

    def spent_usd(self, workflow: str) -> float:
        """Of a workflow until now."""
        return sum(each.usd for each in self.accounts.get(workflow, {}).values())

    def forget(self, workflows: set[str]) -> None:
        """Accounts of these alone are kept."""
        owned = {each.workflow for each in self.machines.values()}
        for accounts in (self.accounts, self.experiments):
            for name in accounts.keys() - workflows - owned:
                del accounts[name]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "machines": {name: asdict(each) for name, each in self.machines.items()},
            "accounts": _plain(self.accounts),
            "experiments": _plain(self.experiments),
        }

    @staticmethod
    def of(plain: dict[str, Any]) -> Ledger:
        """What `plain` gave, of this version or one before."""
        return Ledger(
            {name: Machine(**each) for name, each in plain.get("machines", {}).items()},
            _accounts(plain.get("accounts", {})),
            _accounts(plain.get("experiments", {})),
        )


def _plain(accounts: dict[str, dict[str, Account]]) -> dict[str, Any]:
    """Without what is 0, and without digits that mean nothing: it is written again and again."""
    return {
        workflow: {
            name: {key: round(each, _DIGITS) for key, each in asdict(account).items() if each}
            for name, account in mine.items()
        }
        for workflow, mine in accounts.items()
    }


def _accounts(plain: dict[str, Any]) -> dict[str, dict[str, Account]]:
    return {
        workflow: {name: Account(**each) for name, each in mine.items()}
        for workflow, mine in plain.items()
    }
