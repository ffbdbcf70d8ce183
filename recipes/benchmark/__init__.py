"""What certification costs, in time and in memory."""
