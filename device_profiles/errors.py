"""What can go wrong with a device, its profile or a file it should run."""


class DeviceError(Exception):
    """A device cannot do what was asked; the message is one sentence: what, why, and how to mend it."""


class UnreachableError(DeviceError):
    """A device is not there: not connected, switched off, or the program that reaches it is missing."""


class ProfileError(DeviceError):
    """A profile that does not exist or does not keep the schema."""
