// The list of calls, the newest first, under a strip of their durations.
import { useEffect, useRef, useState } from "preact/hooks";
import { NONE, dollars, seconds, short, time } from "./format.js";
import { html } from "./view.js";

const BARS = 90; // calls in the strip

export function outcome(row) {
  if (row.status === "error") return row.error_code ?? String(row.http_status);
  if (row.status === "cancelled") return "cancelled";
  return row.cache === "hit" || row.cache === "shared" ? `cache ${row.cache}` : null;
}

// One bar a call, the newest at the right; the height is its duration on a logarithmic scale.
function Strip({ rows, chosen }) {
  const shown = rows.slice(0, BARS).reverse();
  const height = (row) => 8 + (92 * Math.log10(1 + row.duration * 1000)) / 5;
  return html`<div class="strip" aria-hidden="true">
    ${shown.map(
      (row) => html`<a key=${`${row.started_at} ${row.id}`} tabindex="-1" href=${`#/calls/${encodeURIComponent(row.id)}`}
        class=${`${row.status} ${row.id === chosen ? "chosen" : ""} ${row.cache === "hit" ? "hit" : ""}`}
        title=${`${time(row.started_at)}  ${seconds(row.duration)}`}
        ><i style=${{ height: `${Math.min(100, height(row))}%` }}></i></a>`,
    )}
  </div>`;
}

function Row({ row, chosen }) {
  const link = useRef();
  useEffect(() => {
    if (chosen) link.current.scrollIntoView({ block: "nearest" });
  }, [chosen]);
  const note = outcome(row);
  return html`<li class=${row.fresh ? "fresh" : ""}>
    <a ref=${link} class=${`row ${row.status}`} href=${`#/calls/${encodeURIComponent(row.id)}`} aria-current=${chosen ? "true" : null}>
      <span class="dot" title=${row.status}></span>
      <span class="what">${row.preview || html`<em>content not recorded</em>`}</span>
      <time>${time(row.started_at)}</time>
      <span class="who">${row.served_model ?? row.model}${row.attempts > 1 && html`<b>${row.attempts} attempts</b>`}${note && html`<b>${note}</b>`}</span>
      <span class="figures">
        <span title="time to first token">${row.ttft == null ? NONE : seconds(row.ttft)}</span>
        <span title="duration">${seconds(row.duration)}</span>
        <span class="tokens" title="tokens in and out">${short(row.prompt_tokens)} → ${short(row.completion_tokens)}</span>
        <span class="cost">${row.cost > 0 && dollars(row.cost)}</span>
      </span>
    </a>
  </li>`;
}

export function Calls({ rows, chosen, more, problem }) {
  const [busy, setBusy] = useState(false);
  const older = () => {
    setBusy(true);
    more().finally(() => setBusy(false));
  };
  return html`<section class="calls" aria-label="Calls">
    ${problem && html`<p class="problem" role="alert">${problem} Trying again.</p>`}
    ${rows?.length > 0 && html`<${Strip} rows=${rows} chosen=${chosen} />`}
    ${rows?.length === 0 && html`<div class="empty"><p>No calls yet.</p><p>Ask something in the chat, or point an OpenAI client at <code>${location.origin}/v1</code>.</p></div>`}
    <ol>${rows?.map((row) => html`<${Row} key=${`${row.started_at} ${row.id}`} row=${row} chosen=${row.id === chosen} />`)}</ol>
    ${more && html`<button class="more" disabled=${busy} onClick=${older}>Older calls</button>`}
  </section>`;
}
