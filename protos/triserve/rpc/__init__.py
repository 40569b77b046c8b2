"""What two or more services need to speak the contract: servers, channels, sessions with peers, errors, logs, fingerprints; knows no service."""
