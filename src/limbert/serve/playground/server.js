// Requests to the server that the page came from: JSON in, JSON out; every refusal becomes a ServerError.

const STORED = "limbert-key";
let key = "";
try { key = sessionStorage.getItem(STORED) || ""; } catch { /* private windows have no storage */ }

export function setKey(value) {
  key = value;
  try { sessionStorage.setItem(STORED, value); } catch { /* valid until the page is closed */ }
}

export class ServerError extends Error {
  constructor(status, message, detail) {
    super(message);
    this.status = status;
    this.detail = detail;
  }

  get needsKey() { return this.status === 401 || this.status === 403; }
}

const MESSAGES = {
  401: "The API key is missing or wrong.",
  403: "The API key is missing or wrong.",
  413: "The text is too long for the server.",
  422: "The request is invalid.",
  424: "The model fails on this text.",
  429: "The server is too busy to meet the deadline.",
  503: "The server is not available: it is starting, shutting down, or inference has failed.",
};

async function errorOf(response) {
  let detail = "";
  try {
    const value = await response.json();
    const error = value.error ?? value.detail ?? "";
    detail = typeof error === "string" ? error : JSON.stringify(error);
  } catch { /* no JSON: no details */ }
  let message = MESSAGES[response.status] || `The server responded with an error (${response.status}).`;
  const wait = Number(response.headers.get("Retry-After"));
  if (response.status === 429 && wait > 0) { message += ` Try again in ${wait} second${wait === 1 ? "" : "s"}.`; }
  return new ServerError(response.status, message, detail);
}

async function request(path, { body, signal } = {}) {
  const headers = {};
  if (key) { headers["X-API-Key"] = String.fromCharCode(...new TextEncoder().encode(key)); } // headers are bytes
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
    throw new ServerError(0, "The server cannot be reached.", "");
  }
  if (!response.ok) { throw await errorOf(response); }
  return response;
}

export async function call(path, options) {
  return (await request(path, options)).json();
}

// Calls `handle` with each line of a streamed response.
export async function lines(path, options, handle) {
  const reader = (await request(path, options)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let chunk;
    try {
      chunk = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") { throw error; }
      throw new ServerError(0, "The connection to the server was lost.", "");
    }
    if (chunk.done) { return; }
    const parts = (rest + chunk.value).split("\n");
    rest = parts.pop();
    parts.filter(Boolean).forEach((line) => handle(JSON.parse(line)));
  }
}
