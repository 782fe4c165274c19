// Talks to the server the page came from: JSON in, JSON out, every refusal as a Problem in plain words.

const STORED = "limbert-key";
let key = "";
try { key = sessionStorage.getItem(STORED) || ""; } catch { /* private windows have no storage */ }

export function useKey(value) {
  key = value;
  try { sessionStorage.setItem(STORED, value); } catch { /* then it holds for this visit */ }
}

export class Problem extends Error {
  constructor(status, plain, detail) {
    super(plain);
    this.status = status;
    this.detail = detail;
  }
}

const WORDS = {
  401: "This server asks for a key, and this is not one that it knows.",
  403: "This server asks for a key, and this is not one that it knows.",
  413: "This is too long for the server.",
  422: "The server cannot do this.",
  429: "The server is too busy to answer this in time.",
  503: "The server does not answer now: it is starting, stopping or out of order.",
};

async function problemOf(response) {
  let detail = "";
  try {
    const value = await response.json();
    const found = value.error ?? value.detail ?? "";
    detail = typeof found === "string" ? found : JSON.stringify(found);
  } catch { /* an answer without JSON says nothing more */ }
  let plain = WORDS[response.status] || `The server answered with an error (${response.status}).`;
  const wait = Number(response.headers.get("Retry-After"));
  if (response.status === 429 && wait > 0) { plain += ` Try again in ${wait} second${wait === 1 ? "" : "s"}.`; }
  return new Problem(response.status, plain, detail);
}

async function request(path, { body, signal } = {}) {
  const headers = {};
  if (key) { headers["X-API-Key"] = String.fromCharCode(...new TextEncoder().encode(key)); } // headers carry bytes
  if (body !== undefined) { headers["Content-Type"] = "application/json"; }
  let response;
  try {
    response = await fetch(new URL(`../${path}`, import.meta.url), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") { throw error; }
    throw new Problem(0, "The server cannot be reached.", "");
  }
  if (!response.ok) { throw await problemOf(response); }
  return response;
}

export async function call(path, options) {
  return (await request(path, options)).json();
}

// Calls `take` with each line of an answer that comes line by line.
export async function lines(path, options, take) {
  const reader = (await request(path, options)).body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") { throw error; }
      throw new Problem(0, "The connection to the server broke.", "");
    }
    if (part.done) { return; }
    const whole = (kept + part.value).split("\n");
    kept = whole.pop();
    whole.filter(Boolean).forEach((line) => take(JSON.parse(line)));
  }
}
