"""Colours and style sheet of the pages: one set of names, a light and a dark value for each.

Pictures use the same names (`var(--series-1)`), so that they follow the page.
"""

from __future__ import annotations

# name -> (light, dark)
PALETTE = {
    "page": ("#fbfbfa", "#15171a"),
    "card": ("#ffffff", "#1c1f23"),
    "ink": ("#1b1d21", "#e8e9eb"),
    "muted": ("#656b75", "#9aa1ac"),
    "line": ("#e2e3e1", "#32363c"),
    "accent": ("#c2540a", "#f0883e"),
    "series-1": ("#7b828e", "#8e96a3"),
    "series-2": ("#2f6db5", "#6aa5e8"),
    "series-3": ("#178a78", "#45bfa9"),
    "series-4": ("#d2640f", "#f0883e"),
    "part-1": ("#b9a3d6", "#8d74b3"),
    "part-2": ("#2f6db5", "#6aa5e8"),
    "part-3": ("#86b2e2", "#37659b"),
    "part-4": ("#b4b9c1", "#5b616b"),
    "part-5": ("#dcdee2", "#3d4249"),
    "part-6": ("#a3468f", "#c979b8"),
}


def variables(theme: int) -> str:
    """Declarations of all colours, for the light (0) or the dark (1) page."""
    return "".join(f"--{name}:{values[theme]};" for name, values in PALETTE.items())


STYLE = (
    f":root{{{variables(0)}color-scheme:light dark}}"
    f"@media(prefers-color-scheme:dark){{:root{{{variables(1)}}}}}"
    """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
  font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Liberation Sans",sans-serif;
  -webkit-font-smoothing:antialiased}
main{max-width:1080px;margin:0 auto;padding:56px 28px 72px}
header{max-width:760px;margin-bottom:36px}
h1{font-size:2.35rem;line-height:1.15;letter-spacing:-.022em;font-weight:680;margin:.1em 0 .45em;text-wrap:balance}
h2{font-size:1.32rem;letter-spacing:-.012em;font-weight:650;margin:0 0 .6em}
h3{font-size:.95rem;font-weight:620;margin:0 0 .7em}
p{max-width:760px;margin:0 0 1em}
.lead{font-size:1.14rem;color:var(--muted);margin:0}
.kicker{font-size:.8rem;letter-spacing:.09em;text-transform:uppercase;color:var(--accent);font-weight:650;margin:0}
section{margin:0 0 52px}
code{font:.88em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
p code,li code,dd code,figcaption code{background:color-mix(in srgb,var(--ink) 7%,transparent);border-radius:4px;
  padding:.08em .32em}
pre{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px;margin:0 0 1em;
  font-size:.92rem;line-height:1.5}
.scroll{overflow-x:auto}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:14px;margin:0 0 8px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px 20px}
.tile b{display:block;font-size:1.75rem;line-height:1.2;letter-spacing:-.02em;font-weight:680;
  font-variant-numeric:tabular-nums}
.tile span{display:block;font-weight:560;margin-top:4px;line-height:1.4}
.tile small{display:block;color:var(--muted);font-size:.84rem;line-height:1.45;margin-top:4px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.94rem}
th,td{text-align:right;padding:10px 14px;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child{text-align:left;padding-left:2px}
thead th{vertical-align:bottom;font-weight:600;font-size:.86rem;line-height:1.35}
thead small{display:block;color:var(--muted);font-weight:400;font-size:.78rem}
tbody th{font-weight:560}
.text{text-align:left;white-space:normal;overflow-wrap:break-word;min-width:5.5em;max-width:34em}
tbody tr:has(.text)>*{vertical-align:top}tbody th.text{min-width:9em}
tr.emphasis>*{font-weight:680;background:color-mix(in srgb,var(--accent) 9%,transparent)}
.notes{color:var(--muted);font-size:.86rem;line-height:1.5;padding-left:1.1em;margin:.9em 0 0;max-width:860px}
.notes li{margin-bottom:.3em}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(430px,100%),1fr));gap:22px;align-items:start}
figure{margin:0 0 18px;background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px 20px 14px}
figure svg{display:block;max-width:100%;height:auto;margin:0 auto}
figure svg.chart{width:100%}
figure svg.gp{max-width:none}
.columns pre{font-size:.78rem;padding:12px 14px}
figcaption{color:var(--muted);font-size:.87rem;line-height:1.5;margin-top:12px}
.facts{display:grid;grid-template-columns:minmax(90px,auto) 1fr;gap:6px 24px;margin:1.2em 0;font-size:.94rem}
.facts dt{color:var(--muted)}
.facts dd{margin:0;overflow-wrap:anywhere}
details{margin:0 0 1em}summary{cursor:pointer;font-weight:560;margin:0 0 .6em}
footer{color:var(--muted);font-size:.84rem;border-top:1px solid var(--line);padding-top:18px}
@media(max-width:620px){main{padding:32px 16px 48px}h1{font-size:1.8rem}
  .facts{grid-template-columns:1fr;gap:0 0}.facts dd{margin-bottom:8px}}
@media print{body{background:#fff}section{break-inside:avoid}}
"""
)
