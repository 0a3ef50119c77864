"""Processor vendors as the run loop sees them: SVM here, VMX to come."""
