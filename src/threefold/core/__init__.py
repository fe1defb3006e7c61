"""What everything else speaks in: targets, batches, outputs, heads, tasks, and the registry of names."""
