"""What every room uses: errors, logging, settings, clock, conditions."""
