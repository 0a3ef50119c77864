"""What runs the hypervisor's own tasks: real threads (`threads`) or a deterministic simulator (`sim`), behind `api`."""
