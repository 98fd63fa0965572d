"""KnownRun: where a run that was launched here stands, so that it is found again from anywhere."""

from profiles.record import Record


class KnownRun(Record):
    """A run's folder (absolute) and the day of its last launch. All else stands in the folder itself."""

    schema_version: int = 1
    id: str
    date: str
    folder: str
