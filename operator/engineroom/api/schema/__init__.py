"""Custom resource definitions and the structural schemas that validate documents."""
