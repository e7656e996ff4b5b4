"""Running a service: settings, logs, metrics, the gRPC server, etcd, objects. No domain words."""
