"""WorkerPool: demand, drain, objects, status, controller."""
