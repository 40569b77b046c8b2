"""The command line: runs all parts on one machine, chats with a server, measures one; knows the HTTP API and no part's inside."""
