// One call in full: what happened, what was decided and why, what went in and out.
import { useEffect, useState } from "preact/hooks";
import * as api from "./api.js";
import { outcome } from "./calls.js";
import { NONE, count, dollars, seconds, speed, time } from "./format.js";
import { html } from "./view.js";

const PARAMETERS = ["max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "n", "dimensions", "stream"];

// The parts of the call's time, in order. The engine's own where it ran; else as seen from here.
function phases(call) {
  const parts = call.engine
    ? [
        ["queued", call.engine.queued],
        ["prefill", call.engine.prefill],
        ["decode", call.engine.decode],
      ]
    : call.ttft == null
      ? [["whole", call.duration]]
      : [
          ["to first token", call.ttft],
          ["streaming", call.duration - call.ttft],
        ];
  const rest = call.duration - parts.reduce((sum, [, span]) => sum + span, 0);
  return rest > 0.02 * call.duration ? [...parts, ["elsewhere", rest]] : parts;
}

function Timeline({ call }) {
  const parts = phases(call).filter(([, span]) => span > 0);
  const share = (span) => (100 * span) / parts.reduce((sum, [, other]) => sum + other, 0);
  return html`<figure class="timeline" aria-label="Where the time went">
    <div class="track">
      ${parts.map(([name, span]) => html`<i key=${name} class=${name.replaceAll(" ", "-")} style=${{ flexGrow: share(span) }} title=${`${name} ${seconds(span)}`}></i>`)}
    </div>
    <figcaption>${parts.map(([name, span]) => html`<span key=${name} class=${name.replaceAll(" ", "-")}>${name} <b>${seconds(span)}</b></span>`)}</figcaption>
  </figure>`;
}

function Attempts({ call }) {
  const percent = (value) => `${Math.min(100, (100 * value) / Math.max(call.duration, 1e-6))}%`;
  return html`<ol class="attempts">
    ${call.attempts.map(
      (attempt, number) => html`<li key=${number} class=${attempt.error ? "failed" : ""}>
        <div><b>${attempt.model}</b> at ${attempt.provider} <span>${attempt.reason}</span></div>
        <div class="track"><i style=${{ marginLeft: percent(attempt.started), width: percent(attempt.duration) }}></i></div>
        <div class="said">${attempt.error ?? `first token ${attempt.ttft == null ? NONE : seconds(attempt.ttft)}, done after ${seconds(attempt.duration)}`}</div>
      </li>`,
    )}
    ${call.skipped.map(
      (skipped, number) => html`<li key=${`s${number}`} class="skipped">
        <div><b>${skipped.model}</b> at ${skipped.provider} <span>not tried: ${skipped.reason}</span></div>
      </li>`,
    )}
  </ol>`;
}

function Facts({ pairs }) {
  return html`<dl class="facts">
    ${pairs.filter(([, value]) => value != null).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

function text(content) {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return content == null ? "" : JSON.stringify(content, null, 2);
  return content.map((part) => part.text ?? JSON.stringify(part)).join("\n");
}

function Messages({ input }) {
  const turns = input.messages ?? [{ role: "prompt", content: input.prompt }];
  return turns.map(
    (turn, number) => html`<div key=${number} class=${`turn ${turn.role}`}>
      <h4>${turn.role}</h4>
      <pre>${text(turn.content)}</pre>
      ${turn.tool_calls && html`<pre>${JSON.stringify(turn.tool_calls, null, 2)}</pre>`}
    </div>`,
  );
}

function Output({ output }) {
  return html`<div class="turn assistant">
    <pre>${output.text ?? JSON.stringify(output, null, 2)}</pre>
    ${output.choices?.map((choice, place) => html`<pre key=${place}>${choice.text}</pre>`)}
    ${output.tool_calls?.map((tool) => html`<pre key=${tool.id}>${tool.name}(${tool.arguments})</pre>`)}
  </div>`;
}

function Body({ call }) {
  const asked = call.input ? PARAMETERS.filter((name) => call.input[name] != null) : [];
  return html`
    ${call.error && html`<p class="problem">${call.error}</p>`}
    <${Timeline} call=${call} />
    <${Facts}
      pairs=${[
        ["First token", call.ttft == null ? NONE : seconds(call.ttft)],
        ["Speed", speed(call.itl)],
        ["Duration", seconds(call.duration)],
        ["Tokens in", count(call.prompt_tokens) + (call.cached_tokens ? ` (${count(call.cached_tokens)} cached)` : "")],
        ["Tokens out", count(call.completion_tokens)],
        ["Cost", dollars(call.cost)],
        ["Cache", call.cache],
        ["Ended by", call.finish_reason],
        ["Tokens are", call.usage_provenance === "estimated" ? "estimated" : null],
      ]}
    />
    <h3>Route</h3>
    <${Facts}
      pairs=${[
        ["Rule", call.route],
        ["Configuration", call.version],
        ["Asked for", call.model],
        ["Served by", call.attempts.length ? null : call.served_model],
      ]}
    />
    <${Attempts} call=${call} />
    ${call.input && html`<h3>Input</h3><${Messages} input=${call.input} />`}
    ${asked.length > 0 && html`<p class="parameters">${asked.map((name) => html`<code key=${name}>${name} ${JSON.stringify(call.input[name])}</code> `)}</p>`}
    ${call.output && html`<h3>Output</h3><${Output} output=${call.output} />`}
    <details><summary>The whole record</summary><pre>${JSON.stringify(call, null, 2)}</pre></details>
  `;
}

export function Call({ id }) {
  const [call, setCall] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    const asked = new AbortController();
    const failed = (error) => asked.signal.aborted || setProblem(error.message);
    api.call(id, asked.signal).then(setCall, failed);
    return () => asked.abort();
  }, [id]);
  return html`<article class="call" aria-label="One call" aria-busy=${!call && !problem}>
    <div class="title">
      <a class="back" href="#/" title="Close (Esc)" aria-label="Close">←</a>
      <div>
        <h2>${call ? call.served_model ?? call.model : " "}</h2>
        <p>${call && html`<span class=${`status ${call.status}`}>${outcome(call) ?? `${call.http_status} ok`}</span> ${call.endpoint} · ${time(call.started_at)}`} · <code>${id}</code></p>
      </div>
    </div>
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    ${call ? html`<${Body} call=${call} />` : !problem && html`<p class="patience">The record appears when the call has ended.</p>`}
  </article>`;
}
