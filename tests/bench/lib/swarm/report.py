"""Results as a table, as JSON and as a picture."""

import json
import statistics
from dataclasses import asdict

OURS = "rackline"


def medians(results):
    """Of the runs of each contestant in one scenario, {name: row}; a run that did not end counts as endless."""
    rows = {}
    for name in dict.fromkeys(result.contestant for result in results):
        runs = [result for result in results if result.contestant == name]
        ratios = sorted(run.ratio or float("inf") for run in runs)
        middle = lambda attribute: statistics.median(getattr(run, attribute) for run in runs)
        slow = [run.slow_last for run in runs if run.slow_last]
        rows[name] = {
            "runs": len(runs), "mib": runs[0].mib, "ideal": runs[0].ideal, "ratio": statistics.median(ratios), "lowest": ratios[0],
            "highest": ratios[-1], "server": middle("server_copies"), "down": middle("trunk_down"), "up": middle("trunk_up"),
            "busy": middle("busy"), "cpu": middle("cpu_per_gb"), "slow": statistics.median(slow) if slow else None,
            "verified": min(run.verified for run in runs), "alive": max(run.alive for run in runs),
            "wrong": sum(run.wrong for run in runs),
        }
    return rows


def table(title, results):
    rows = medians(results)
    ours = rows.get(OURS, {}).get("ratio")
    lines = [f"## {title}", "",
             f"{'':13} {'last':>8} {'/ ideal':>8} {'lowest':>7} {'highest':>7} {'/ ours':>7} {'server':>7} {'trunk':>11} "
             f"{'CPU':>5} {'s/GB':>5}  verified"]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["ratio"]):
        ended = row["ratio"] != float("inf")
        number = lambda value, digits=2: f"{value:.{digits}f}" if value != float("inf") else "-"
        against = number(row["ratio"] / ours) if ours and ended and ours != float("inf") else "-"
        trunk = f"{row['down']:.2f}/{row['up']:.2f}" if row["down"] or row["up"] else "-"
        notes = [f"{row['verified']}/{row['alive']}"]
        notes += [f"{row['mib']} MiB"] if row["mib"] != max(other["mib"] for other in rows.values()) else []
        notes += [f"{row['wrong']} WRONG"] if row["wrong"] else []
        notes += [f"slow one {row['slow']:.1f} s"] if row["slow"] else []
        lines.append(f"{name:13} {number(row['ratio'] * row['ideal'], 1):>7}s {number(row['ratio']):>8} {number(row['lowest']):>7} "
                     f"{number(row['highest']):>7} {against:>7} {row['server']:>7.2f} {trunk:>11} {row['busy'] * 100:>4.0f}% "
                     f"{row['cpu']:>5.1f}  {', '.join(notes)}")
    return "\n".join(lines) + "\n"


EXPLANATION = """last: when the last machine alive had the whole file, median of the runs; where one has a slow link, the last of the
others. / ideal: over size / link rate (TCP's own headers make it 1.046 at best). / ours: how many times our time. server, trunk:
what the server sent and what the busiest trunk carried down and up, in copies of the file. CPU: of the whole machine, all hosts
together; from some 90 % on, its cores are the limit and not the links. s/GB: processor time of the programs for each GB that
arrived. verified: machines alive whose file has the right SHA-256, in the worst run."""


def as_json(path, scenarios):
    with open(path, "w") as file:
        json.dump([{"scenario": key, "title": title, "runs": [asdict(result) | {"ratio": result.ratio} for result in results]}
                   for key, title, results in scenarios], file, indent=1)


def picture(path, scenarios):
    """Bars of last over ideal, one group for each scenario; longer ones than `top` are cut and say so."""
    top, width, bar, left = 6.0, 720, 16, 130
    shapes, y = [], 10
    for _, title, results in scenarios:
        y += 22
        shapes.append(f'<text x="10" y="{y}" font-weight="bold">{title}</text>')
        for name, row in sorted(medians(results).items(), key=lambda item: item[1]["ratio"]):
            y += bar + 4
            ratio, ended = row["ratio"], row["ratio"] != float("inf")
            length = min(ratio, top) / top * (width - left - 90)
            colour = "#1f6f8b" if name == OURS else "#b8c4c9"
            label = f"{ratio:.2f}" if ended else "did not end"
            shapes.append(f'<text x="{left - 6}" y="{y}" text-anchor="end">{name}</text>'
                          f'<rect x="{left}" y="{y - 12}" width="{length:.0f}" height="{bar}" fill="{colour}"/>'
                          f'<text x="{left + length + 6:.0f}" y="{y}">{label}</text>')
        y += 12
    one = left + (width - left - 90) / top
    with open(path, "w") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y + 10}" font-family="sans-serif" '
                   f'font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(shapes)}'
                   f'<line x1="{one:.0f}" x2="{one:.0f}" y1="14" y2="{y}" stroke="#a33" stroke-dasharray="3 3"/></svg>\n')
