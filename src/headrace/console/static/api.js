// Everything the page asks of the server.

// The body of a JSON answer; a refusal becomes an Error with the server's own words.
async function body(response) {
  const content = await response.json().catch(() => null);
  if (!response.ok) throw new Error(content?.error?.message ?? `The server answered ${response.status}.`);
  return content;
}

const get = (path, signal) => fetch(path, { signal }).then(body);

export const calls = (before) => get(`/api/calls?limit=50${before ? `&before=${encodeURIComponent(before)}` : ""}`);
// One record; a call that still runs is waited for.
export const call = (id, signal) => get(`/api/calls/${encodeURIComponent(id)}?wait=60`, signal);
export const summary = (window) => get(`/api/summary?seconds=${window}`);
export const models = () => get("/v1/models").then((list) => list.data.map((model) => model.id));

// Calls stored after the call `after`, as they come. Returns a function that ends it.
export function follow(after, onCall, onState) {
  const source = new EventSource(`/api/stream?after=${encodeURIComponent(after ?? "")}`);
  source.addEventListener("call", (event) => onCall(JSON.parse(event.data)));
  source.onopen = () => onState(true);
  source.onerror = () => onState(false);
  return () => source.close();
}

const LONGEST_ANSWER = 1024; // tokens; a small model may never stop by itself

// Stream a chat answer: `onAbout` gets what the headers say, `onText` each piece of the answer.
// Resolves to how it ended.
export async function chat(model, messages, { onAbout, onText }, signal) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      model,
      messages,
      max_tokens: LONGEST_ANSWER,
      temperature: 0.3, // at 1 a small model rambles
      stream: true,
      stream_options: { include_usage: true },
    }),
    signal,
  });
  if (!response.ok) await body(response);
  onAbout({
    id: response.headers.get("x-request-id"),
    model: response.headers.get("x-headrace-model"),
    provider: response.headers.get("x-headrace-provider"),
    cache: response.headers.get("x-headrace-cache"),
  });
  const ending = {};
  for await (const data of events(response.body)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    const choice = chunk.choices?.[0];
    if (choice?.delta?.content) onText(choice.delta.content);
    if (choice?.finish_reason) ending.finish = choice.finish_reason;
    if (chunk.usage) ending.usage = chunk.usage;
  }
  return ending;
}

// The data of each server-sent event of a body, whatever way it is cut.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}
