// Talking to the server, and the dialog that asks for its token.
import { $, chosenSource, setOffline, takeState, toast } from "./state.js";

class Refused extends Error {}

export async function ask(path, options) {
  const response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  if (response.status === 401 && path !== "/api/login") { askForToken(); throw new Refused("token"); }
  if (!response.ok) {
    let told = {};
    try { told = await response.json(); } catch { /* not one of ours */ }
    throw new Error([told.problem, told.fix].filter(Boolean).join(". ") || `The server said ${response.status}`);
  }
  return response;
}

export const askJson = async (path, options) => (await ask(path, options)).json();

const post = (path, data) => askJson(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(data),
});

// Change something; says whether that was done, and why not.
export async function act(path, data = {}, said = null) {
  try {
    // The state that comes back is that of the source that is looked at.
    takeState(await post(path + chosenSource("?"), data));
    if (said) toast(said);
    return true;
  } catch (error) {
    complain(error);
    return false;
  }
}

export function complain(error) {
  if (!(error instanceof Refused)) toast(error.message, true);
}

export function lose(error) {
  if (!(error instanceof Refused)) setOffline(true);
}

export const asking = () => $("login").open;

function askForToken() {
  if (!asking()) $("login").showModal();
}

async function login(token) {
  await post("/api/login", { token });
  if (asking()) $("login").close();
}

// The token that the address carries after #, which no server is sent.
export async function loginFromAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given) return;
  history.replaceState(null, "", location.pathname);
  try { await login(given); } catch { askForToken(); }
}

$("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await login($("token").value.trim());
    $("login-bad").hidden = true;
    $("token").value = "";
  } catch (error) {
    $("login-bad").textContent = error.message;
    $("login-bad").hidden = false;
  }
});
$("login").addEventListener("cancel", (event) => event.preventDefault());
