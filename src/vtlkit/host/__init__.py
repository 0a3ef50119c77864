"""What runs the hypervisor's own tasks: real threads (`threads`) or the deterministic simulator (`sim`), behind `api`."""
