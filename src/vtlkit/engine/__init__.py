"""What executes guest instructions: the contract (`api`) and its implementations."""
