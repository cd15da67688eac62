// The page: a header with sums, the calls at the left, one call or the chat at the right.
import { render } from "preact";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import * as api from "./api.js";
import { Call } from "./call.js";
import { Calls } from "./calls.js";
import { Chat } from "./chat.js";
import { Summary } from "./summary.js";
import { html } from "./view.js";

const MOST_ROWS = 1000; // kept in the page; older ones are a click away

// The address says what is shown: #/calls/ID, #/chat, or nothing.
function place() {
  const [, view, id] = location.hash.split("/");
  return { view: view ?? "", id: id ? decodeURIComponent(id) : null };
}

function usePlace() {
  const [where, setWhere] = useState(place);
  useEffect(() => {
    const changed = () => setWhere(place());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return where;
}

// An id may come from a caller, who may use it twice.
const same = (one, other) => one.id === other.id && one.started_at === other.started_at;

// The calls: a first page, then each new one as it comes.
function useCalls() {
  const [rows, setRows] = useState(null);
  const [older, setOlder] = useState(null); // the cursor of the next page
  const [live, setLive] = useState(false);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    let end = () => {};
    let gone = false;
    const add = (row) =>
      setRows((known) => (known.some((r) => same(r, row)) ? known : [{ ...row, fresh: true }, ...known].slice(0, MOST_ROWS)));
    const begin = () =>
      api.calls().then(
        (page) => {
          if (gone) return;
          setProblem(null);
          setRows(page.calls);
          setOlder(page.next);
          end = api.follow(page.calls[0]?.id, add, setLive);
        },
        (error) => {
          if (gone) return;
          setProblem(error.message);
          const again = setTimeout(begin, 2000);
          end = () => clearTimeout(again);
        },
      );
    begin();
    return () => {
      gone = true;
      end();
    };
  }, []);
  const more = useCallback(async () => {
    const page = await api.calls(older);
    setRows((known) => [...known, ...page.calls.filter((row) => !known.some((r) => same(r, row)))]);
    setOlder(page.next);
  }, [older]);
  return { rows, live, problem, more: older ? more : null };
}

function isTyping(event) {
  return /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
}

function useKeys(rows, where) {
  const now = useRef();
  now.current = { rows, where };
  useEffect(() => {
    const pressed = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const { rows, where } = now.current;
      if (event.key === "Escape") {
        if (where.id) location.hash = "#/";
        else document.activeElement?.blur();
      }
      if (isTyping(event)) return;
      const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
      if (step && rows?.length) {
        const at = rows.findIndex((row) => row.id === where.id);
        const next = rows[Math.max(0, Math.min(rows.length - 1, at < 0 ? 0 : at + step))];
        location.hash = `#/calls/${encodeURIComponent(next.id)}`;
        event.preventDefault();
      }
      if (event.key === "c" || event.key === "/") {
        location.hash = "#/chat";
        requestAnimationFrame(() => document.getElementById("question")?.focus());
        event.preventDefault();
      }
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}

function App() {
  const where = usePlace();
  const { rows, live, problem, more } = useCalls();
  useKeys(rows, where);
  const chatting = where.view !== "calls" || !where.id;
  return html`
    <header>
      <a class="brand" href="#/"><img src="/console/mark.svg" alt="" width="22" height="22" /> Headrace</a>
      <nav aria-label="Views">
        <a href="#/" aria-current=${where.view !== "chat" ? "page" : null}>Calls</a>
        <a href="#/chat" aria-current=${where.view === "chat" ? "page" : null}>Chat</a>
      </nav>
      <span class=${`state ${live ? "live" : ""}`} role="status">${live ? "Live" : "Connecting"}</span>
    </header>
    <${Summary} newest=${rows?.[0]?.id} />
    <main data-view=${where.view === "chat" ? "chat" : where.id ? "call" : "calls"}>
      <${Calls} rows=${rows} chosen=${where.id} more=${more} problem=${problem} />
      <aside>
        ${!chatting && html`<${Call} key=${where.id} id=${where.id} />`}
        <${Chat} hidden=${!chatting} />
      </aside>
    </main>
  `;
}

render(html`<${App} />`, document.body);
