"""Front-ends: audio to features, on the device, in float32, inside the task."""
