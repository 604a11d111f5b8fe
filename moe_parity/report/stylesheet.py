"""The look of the page: on a desk, on a phone, on paper."""

CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.4rem 1.1rem 4rem; max-width: 72rem; background: #fff;
  color: #1b1f24; font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .1rem 0; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; padding-bottom: .25rem;
  border-bottom: 1px solid #dde1e6; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.kicker, .when, .caption, figcaption, .absent { color: #5b6470; font-size: .85rem; }
.kicker, .when { margin: 0; }
.kicker { letter-spacing: .03em; }
.verdict { margin: 1.2rem 0; padding: .9rem 1.1rem; border-left: 5px solid #7a828c;
  background: #f5f6f8; }
.verdict.good { border-color: #1a7f4b; background: #f0f8f3; }
.verdict.bad { border-color: #b3362b; background: #fcf2f1; }
.verdict.open { border-color: #c98a00; background: #fdf8ec; }
.verdict p { margin: 0; }
.headline { font-size: 1.15rem; line-height: 1.4; font-weight: 650; }
.verdict ul { margin: .7rem 0 0; padding-left: 1.1rem; }
.verdict li, .warn li { margin: .25rem 0; }
.warn h2 { font-size: 1rem; border: 0; margin: 1rem 0 0; }
.warn ul { margin: .2rem 0; padding-left: 1.1rem; }
nav { font-size: .85rem; line-height: 1.9; }
nav a { color: #0b6e99; margin-right: .9rem; white-space: nowrap; text-decoration: none; }
figure { margin: 1rem 0 1.6rem; }
figure img { display: block; width: 100%; height: auto; max-width: 46rem; margin: 0; }
img.phone { display: none; }
figcaption { margin: .5rem 0 0; max-width: 46rem; }
.absent { font-style: italic; }
/* Shadows at the edges behind which a table goes on. */
.scroll { overflow-x: auto; background:
  linear-gradient(to right, #fff 30%, #fff0) 0 0 / 2.5rem 100% no-repeat local,
  linear-gradient(to left, #fff 30%, #fff0) 100% 0 / 2.5rem 100% no-repeat local,
  linear-gradient(to right, #1b1f2433, #1b1f2400) 0 0 / .8rem 100% no-repeat scroll,
  linear-gradient(to left, #1b1f2433, #1b1f2400) 100% 0 / .8rem 100% no-repeat scroll; }
/* Rows of whole pixels: the first column stays in place, and a fraction would hide its rules. */
table { border-collapse: separate; border-spacing: 0; font-size: 13px; line-height: 18px;
  min-width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; white-space: nowrap; vertical-align: bottom; font-weight: 600;
  border-bottom: 2px solid #1b1f24; padding: 5px .75rem 5px 0; }
td { border-bottom: 1px solid #e8ebee; padding: 4px .75rem 4px 0; vertical-align: top;
  white-space: nowrap; }
td.w { white-space: normal; min-width: 12rem; overflow-wrap: anywhere; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
th.n, td.n { text-align: right; }
.verdict, section > p, section > ul, .warn, pre { max-width: 50rem; }
section > ul { padding-left: 1.2rem; }
.caption { margin: 1.2rem 0 .3rem; }
pre { background: #f5f6f8; padding: .7rem .9rem; overflow-x: auto; font-size: .8rem;
  line-height: 1.45; white-space: pre-wrap; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: #0b6e99; }
@media (max-width: 560px) {
  img.desk { display: none; }
  img.phone { display: block; }
  td.w { white-space: nowrap; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  figure, .verdict, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  details.screen { display: none; }
  .scroll { overflow: visible; background: none; }
  .caption { break-after: avoid; }
  table { font-size: 6.6pt; line-height: 1.35; }
  details::details-content { content-visibility: visible; height: auto; }
  td, th { padding-right: .25rem; }
  pre.long { columns: 3; font-size: 6pt; line-height: 1.3; padding: .3rem; }
  @page { size: A4; margin: 14mm; }
}
"""
