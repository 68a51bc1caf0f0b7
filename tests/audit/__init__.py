"""What is looked at from outside: code, dependencies, history, chart."""
