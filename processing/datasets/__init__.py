"""Where data sets come from: files, folders, tables, shards and the Hub."""
