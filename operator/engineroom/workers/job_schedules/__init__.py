"""Job schedules that pools declare, and the loop that runs them."""
