/* Sends a file that is larger than one request may be in pieces, then the form without it. Small files go with the form. */
(function () {
  "use strict";
  var form = document.querySelector("form[data-pieces]");
  if (!form || !window.fetch) { return; }
  var input = form.querySelector("input[type=file]");
  var button = form.querySelector("button[type=submit]");
  var said = form.querySelector("[data-said]");
  var piece = Number(form.dataset.piece);
  var token = form.querySelector("[name=csrfmiddlewaretoken]").value;

  function stop(sentence) {
    said.textContent = sentence;
    button.disabled = false;
    input.disabled = false;
  }

  function send(file, index) {
    var start = index * piece;
    if (start >= file.size) {
      said.textContent = "All of it arrived; it is being checked.";
      form.querySelector("[name=pieces]").value = index;
      form.submit();
      return;
    }
    said.textContent = "Sent " + Math.floor(100 * start / file.size) + " % of the file.";
    fetch(form.dataset.pieces + index + "/", {
      method: "POST",
      headers: { "X-CSRFToken": token, "Content-Type": "application/octet-stream" },
      body: file.slice(start, start + piece)
    }).then(function (answer) {
      if (answer.ok && !answer.redirected) { send(file, index + 1); return; }
      answer.json().then(function (said) { stop(said.sentence || said.detail); }, function () {
        stop("The portal refused the file; load the page again.");
      });
    }, function () {
      stop("The connection broke. Choose the file again.");
    });
  }

  form.addEventListener("submit", function (event) {
    var file = input.files[0];
    if (!file || file.size <= piece) { return; }
    event.preventDefault();
    if (file.size > Number(form.dataset.limit)) {
      stop("The file is larger than the portal takes.");
      return;
    }
    button.disabled = true;
    input.disabled = true;
    send(file, 0);
  });
}());
