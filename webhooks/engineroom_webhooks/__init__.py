"""The admission server: refuses WorkerPools that break the rules, and says which and why."""
