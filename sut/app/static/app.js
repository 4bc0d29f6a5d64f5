// What the page needs beyond links: log in and out, upload, like. Ids are kept
// as text: they have 63 bits, and numbers in JavaScript 53.
"use strict";

const note = document.getElementById("note");

function say(text) {
  note.textContent = text;
  note.hidden = !text;
}

// ask sends a request and returns the response, or says what was wrong and
// returns null.
async function ask(path, options) {
  say("");
  try {
    const response = await fetch(path, { method: "POST", ...options });
    if (response.ok) return response;
    const problem = await response.json();
    say(response.status === 401 ? `Please log in: ${problem.error}.` : `${problem.error}: ${problem.hint}`);
  } catch {
    say("The service cannot be reached. Try again in a second.");
  }
  return null;
}

function onSubmit(id, action) {
  const form = document.getElementById(id);
  if (!form) return;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (await action(new FormData(form))) location.reload();
  });
}

onSubmit("login", (fields) =>
  ask("/api/login", {
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(Object.fromEntries(fields)),
  }));

onSubmit("logout", () => ask("/api/logout"));

onSubmit("upload", (fields) => ask("/api/photos", { body: fields }));

document.querySelector(".file input")?.addEventListener("change", (event) => {
  const file = event.target.files[0];
  event.target.parentElement.classList.toggle("chosen", Boolean(file));
  const title = document.querySelector('#upload [name="title"]');
  if (file && !title.value) title.value = file.name.replace(/\.jpe?g$/i, "");
});

document.querySelector("main").addEventListener("click", async (event) => {
  const button = event.target.closest(".like");
  if (!button) return;
  if (await ask(`/api/photos/${button.dataset.photo}/like`)) {
    const count = button.querySelector("span");
    count.textContent = Number(count.textContent) + 1;
    button.classList.add("liked");
  }
});
