"""What goes into an EVAR clone, and EVAR's own models and tasks as Encoder and Task."""
