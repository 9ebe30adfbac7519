"""Which versions of packages are installed."""


def installed_version(name: str) -> str | None:
    """The version of a distribution; None where it is not installed, as this package is not when it is run from its folder."""
    from importlib import metadata  # with all of `email`: a fifth of the time that `--help` takes

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
