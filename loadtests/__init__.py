"""Load tests: what the proxy costs beside nginx, and locust scenarios for a proxy that runs."""
