"""Public test tools: conformance suites that every host and every engine passes, and a builder of small guests."""
