"""What the demo and the tests share: an edge host, satellites, clients, and EC2 emulated. No product code imports it."""
