"""The files side: snapshot, sidecar, history, and the lock that they share."""
