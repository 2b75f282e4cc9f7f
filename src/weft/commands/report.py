"""`weft report RUN ...`: write report.html of runs, also of those that are under way."""

from __future__ import annotations

from weft.arguments import Parser


def run(argv: list[str]) -> int:
    """Write the reports, and print where they are."""
    parser = Parser(
        prog="weft report",
        description="Write report.html from the files of a run, also of one that is under way, and print its path.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories; each gets its report")
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs that the result is compared with, such as every client alone and the pooled data",
    )
    parser.add_argument("--metric", metavar="NAME", help="what the page begins with, such as accuracy or TASK/METRIC")
    arguments = parser.parse(argv)
    from weft.launch.damage import as_written
    from weft.pages.report import write_report

    for folder in arguments.runs:
        with as_written([folder, *arguments.against]):
            print(write_report(folder, against=arguments.against, metric=arguments.metric))
    return 0
