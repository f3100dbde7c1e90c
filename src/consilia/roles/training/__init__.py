"""A task of training: rounds, updates, the global model, as the server and the hospitals see it."""
