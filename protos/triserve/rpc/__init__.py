"""What two or more services need to speak the contract: servers, channels, errors, logs, fingerprints; knows no service."""
