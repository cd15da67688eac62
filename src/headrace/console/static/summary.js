// The line of sums over the last hour, day or month.
import { useEffect, useState } from "preact/hooks";
import * as api from "./api.js";
import { NONE, count, dollars, seconds, short } from "./format.js";
import { html } from "./view.js";

const WINDOWS = [
  { label: "1 h", title: "the last hour", span: 3600 },
  { label: "24 h", title: "the last day", span: 86400 },
  { label: "30 d", title: "the last 30 days", span: 30 * 86400 },
];
const EVERY = 15000; // ms; the window moves even when no call comes

function Sum({ name, value, note, bad, title }) {
  return html`<div class="sum" title=${title}>
    <dt>${name}</dt>
    <dd class=${bad ? "bad" : ""}>${value}${note && html` <small>${note}</small>`}</dd>
  </div>`;
}

export function Summary({ newest }) {
  const [span, setSpan] = useState(86400);
  const [sums, setSums] = useState(null);
  useEffect(() => {
    let gone = false;
    const ask = () => api.summary(span).then((found) => gone || setSums(found), () => {});
    const soon = setTimeout(ask, 150); // one question for a burst of calls
    const timer = setInterval(ask, EVERY);
    return () => {
      gone = true;
      clearTimeout(soon);
      clearInterval(timer);
    };
  }, [span, newest]);
  const hits = sums?.calls ? `${Math.round((100 * sums.cache_hits) / sums.calls)} %` : null;
  return html`<section class="summary" aria-label="Summary">
    <dl>
      <${Sum} name="Calls" value=${sums ? count(sums.calls) : NONE} />
      <${Sum} name="Errors" value=${sums ? count(sums.errors) : NONE} bad=${sums?.errors > 0} />
      <${Sum} name="TTFT p50" title="time to first token, median" value=${seconds(sums?.ttft_p50)} />
      <${Sum} name="TTFT p95" title="time to first token, 95th percentile" value=${seconds(sums?.ttft_p95)} />
      <${Sum} name="Tokens in / out" value=${sums ? `${short(sums.prompt_tokens)} / ${short(sums.completion_tokens)}` : NONE} />
      <${Sum} name="Cost" value=${sums ? dollars(sums.cost) : NONE} />
      <${Sum} name="Cache hits" value=${sums ? count(sums.cache_hits) : NONE} note=${hits} />
    </dl>
    <div class="windows" role="group" aria-label="Time span">
      ${WINDOWS.map(
        (w) => html`<button key=${w.span} title=${w.title} aria-pressed=${w.span === span} onClick=${() => setSpan(w.span)}>${w.label}</button>`,
      )}
    </div>
  </section>`;
}
