"""The store in one DynamoDB table, for hosts that share a fleet."""
