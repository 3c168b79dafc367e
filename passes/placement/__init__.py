"""What placement decides for one rank: values to send, id slots, shards of tables."""
