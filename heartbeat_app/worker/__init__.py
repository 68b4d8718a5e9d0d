"""The Faust app and the services that run in its process."""
