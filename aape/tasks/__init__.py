"""What an encoder listens to: `Task`, and `from_metadata`, which reads one from a CSV file and a folder of audio."""

from aape.tasks.metadata import BadClip, Task, from_metadata

__all__ = ["BadClip", "Task", "from_metadata"]
