// A box to try a model: streams from the same endpoint that an application would use.
import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "./api.js";
import { seconds } from "./format.js";
import { html } from "./view.js";

function Turn({ turn }) {
  const { about } = turn;
  return html`<div class=${`turn ${turn.role}`}>
    ${turn.content && html`<pre>${turn.content}</pre>`}
    ${turn.busy && !turn.content && html`<span class="waiting" aria-label="Waiting"><i></i><i></i><i></i></span>`}
    ${turn.problem && html`<p class="problem" role="alert">${turn.problem}</p>`}
    ${about && html`<p class="about">
      ${about.model ?? ""}${about.first && ` · first token ${seconds(about.first)}`}${about.speed && ` · ${about.speed} tok/s`}
      ${about.cache && about.cache !== "miss" && about.cache !== "off" ? ` · cache ${about.cache}` : ""}
      ${about.finish === "length" ? " · cut at the limit" : ""}${turn.stopped ? " · stopped" : ""}
      ${about.id && html` · <a href=${`#/calls/${encodeURIComponent(about.id)}`}>see the call</a>`}
    </p>`}
  </div>`;
}

// Ask and stream; `change` replaces the last turn. Never throws.
async function answer(model, turns, change, signal) {
  const messages = turns.filter((turn) => turn.content).map(({ role, content }) => ({ role, content }));
  const began = performance.now();
  let first = null;
  let content = "";
  let about = {};
  const onAbout = (said) => change({ about: (about = said) });
  const onText = (text) => {
    if (first === null) {
      first = performance.now();
      about = { ...about, first: (first - began) / 1000 };
    }
    content += text;
    change({ content, about });
  };
  try {
    const ending = await api.chat(model, messages, { onAbout, onText }, signal);
    const streamed = (performance.now() - first) / 1000;
    const tokens = ending.usage?.completion_tokens ?? 0;
    const speed = first && tokens > 1 && streamed > 0.05 ? Math.round((tokens - 1) / streamed) : null;
    change({ busy: false, about: { ...about, finish: ending.finish, speed } });
  } catch (error) {
    const stopped = error.name === "AbortError";
    change({ busy: false, stopped, problem: stopped ? null : error.message });
  }
}

function useModels() {
  const [models, setModels] = useState([]);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    api.models().then(setModels, (error) => setProblem(error.message));
  }, []);
  return [models, problem];
}

export function Chat({ hidden }) {
  const [models, problem] = useModels();
  const [chosen, setChosen] = useState(null);
  const [turns, setTurns] = useState([]);
  const [question, setQuestion] = useState("");
  const running = useRef(null);
  const log = useRef();
  const model = chosen ?? models[0];
  const busy = turns.at(-1)?.busy ?? false;

  useEffect(() => {
    const box = log.current;
    if (box && box.scrollHeight - box.scrollTop - box.clientHeight < 120) box.scrollTop = box.scrollHeight;
  }, [turns]);

  const change = (news) => setTurns((known) => [...known.slice(0, -1), { ...known.at(-1), ...news }]);
  const ask = async (event) => {
    event?.preventDefault();
    const content = question.trim();
    if (!content || !model || busy) return;
    setQuestion("");
    const asked = [...turns, { role: "user", content }];
    setTurns([...asked, { role: "assistant", content: "", busy: true }]);
    running.current = new AbortController();
    await answer(model, asked, change, running.current.signal);
  };
  const key = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) ask(event);
  };
  const anew = () => {
    running.current?.abort();
    setTurns([]);
  };

  return html`<section class="chat" aria-label="Chat" hidden=${hidden}>
    <div class="title">
      <label>Model
        <select value=${model} onChange=${(event) => setChosen(event.target.value)}>
          ${models.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
        </select>
      </label>
      ${turns.length > 0 && html`<button type="button" onClick=${anew}>New chat</button>`}
    </div>
    <div class="log" ref=${log} aria-live="polite" aria-busy=${busy}>
      ${problem && html`<p class="problem" role="alert">${problem}</p>`}
      ${turns.length === 0 && html`<div class="empty"><p>Ask the model something.</p><p>Each answer appears in the list of calls, with its route, its timings and its cost.</p></div>`}
      ${turns.map((turn, number) => html`<${Turn} key=${number} turn=${turn} />`)}
    </div>
    <form onSubmit=${ask}>
      <textarea id="question" rows="1" aria-label="Question" placeholder="Ask anything" value=${question}
        onInput=${(event) => setQuestion(event.target.value)} onKeyDown=${key}></textarea>
      ${busy
        ? html`<button type="button" class="send" onClick=${() => running.current.abort()}>Stop</button>`
        : html`<button class="send" disabled=${!question.trim() || !model}>Send</button>`}
    </form>
  </section>`;
}
