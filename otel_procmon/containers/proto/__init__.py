"""What is generated from .proto files: messages of the Container Runtime Interface."""
