"""What finds out whether a protocol keeps its promise: scenarios today, run under many schedules."""
