"""Settings: `base` holds what is the same everywhere; choose `demo`, `production` or `test`."""
