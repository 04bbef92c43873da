// Runs model.onnx on the text of the page, in this tab.
import * as ort from "./ort/ort.wasm.min.mjs";

const CLASSES = ["acq", "crude", "earn", "grain", "interest", "money-fx",
  "ship", "trade"];
const NAMES = { acq: "acquisitions", crude: "crude oil", earn: "earnings",
  grain: "grain", interest: "interest rates", "money-fx": "foreign exchange",
  ship: "shipping", trade: "trade" };
const BYTES_PER_TOKEN = 4;
const SHOWN_TOKENS = 2000;  // colours for more would slow the page, not the model

const element = (name) => document.getElementById(`demo-${name}`);
const folder = new URL(".", import.meta.url);
ort.env.wasm.numThreads = 1;  // threads need special headers of the server
ort.env.wasm.wasmPaths = new URL("ort/", folder).href;

function cleaned(text) {  // as the training texts are
  return text.toLowerCase().replace(/[^a-z]+/g, " ").trim();
}

function tokens(bytes) {  // byte b is token b + 1
  const ids = Int32Array.from(bytes, (b) => b + 1);
  return new ort.Tensor("int32", ids, [1, ids.length]);
}

function colour(share, largest) {
  const strength = Math.min(1, Math.abs(share) / largest);
  const rgb = share > 0 ? "245, 124, 0" : "25, 118, 210";
  return `rgba(${rgb}, ${(0.6 * strength).toFixed(2)})`;
}

function showParts(bytes, shares, answer) {
  const parts = element("parts");
  const count = Math.min(SHOWN_TOKENS, shares.dims[1]);
  const own = Array.from({ length: count }, (_, i) => {
    // Against the mean over the classes: only differences count.
    const all = shares.data.subarray(i * CLASSES.length, (i + 1) * CLASSES.length);
    return all[answer] - all.reduce((a, b) => a + b) / CLASSES.length;
  });
  const mean = own.reduce((a, b) => a + b) / count;
  const above = own.map((share) => share - mean);
  const largest = Math.max(...above.map(Math.abs), 1e-9);
  const decoder = new TextDecoder();
  parts.replaceChildren(...above.map((share, i) => {
    const span = document.createElement("span");
    const start = i * BYTES_PER_TOKEN;
    span.textContent = decoder.decode(
      bytes.subarray(start, start + BYTES_PER_TOKEN), { stream: true });
    span.style.background = colour(share, largest);
    return span;
  }));
}

async function classify(session) {
  const bytes = new TextEncoder().encode(cleaned(element("text").value));
  if (bytes.length === 0) {
    element("answer").textContent = "Please type a text in English.";
    return;
  }
  const start = performance.now();
  const result = await session.run({ tokens: tokens(bytes) });
  const time = performance.now() - start;
  const probabilities = result.probabilities.data;
  const answer = probabilities.indexOf(Math.max(...probabilities));
  element("answer").textContent = `${NAMES[CLASSES[answer]]}: `
    + `${(100 * probabilities[answer]).toFixed(1)} %. `
    + `${bytes.length.toLocaleString("en")} bytes in ${time.toFixed(0)} ms.`;
  showParts(bytes, result.contributions, answer);
}

async function begin() {
  const session = await ort.InferenceSession.create(
    new URL("model.onnx", folder).href, { executionProviders: ["wasm"] });
  element("run").onclick = () => classify(session);
  element("longer").onclick = () => {
    element("text").value = `${element("text").value.trim()} `.repeat(10);
    return classify(session);
  };
  for (const name of ["run", "longer"]) element(name).disabled = false;
  await classify(session);
}

begin().catch((error) => {
  element("answer").textContent = `The model could not be started: ${error.message}`;
});
