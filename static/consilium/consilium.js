/* Small helps that pages do without: times in the reader's zone, a copy button, the account menu closing on Escape. */
(function () {
  "use strict";
  var full = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });
  var exact = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  var day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });

  function localise(root) {
    root.querySelectorAll("time[data-moment]").forEach(function (element) {
      var at = new Date(element.getAttribute("datetime"));
      if (isNaN(at)) { return; }
      var form = { full: full, exact: exact, day: day }[element.dataset.moment] || full;
      element.textContent = form.format(at);
      element.removeAttribute("data-moment");
    });
    root.querySelectorAll("[data-copy]").forEach(function (button) {
      if (!navigator.clipboard) { return; }
      button.hidden = false;
    });
  }

  document.addEventListener("click", function (event) {
    var button = event.target.closest("[data-copy]");
    if (button) {
      var source = document.getElementById(button.dataset.copy);
      navigator.clipboard.writeText(source.textContent.trim()).then(function () {
        button.querySelector("[data-said]").textContent = "Copied";
      }, function () {
        button.querySelector("[data-said]").textContent = "Could not copy: select the text instead";
      });
    }
    document.querySelectorAll("details[data-menu][open]").forEach(function (menu) {
      if (!menu.contains(event.target)) { menu.open = false; }
    });
    if (event.target.closest("[data-print]")) { window.print(); }
  });
  document.addEventListener("keydown", function (event) {
    if (event.key !== "Escape") { return; }
    document.querySelectorAll("details[data-menu][open]").forEach(function (menu) {
      menu.open = false;
      menu.querySelector("summary").focus();
    });
  });
  document.addEventListener("change", function (event) {
    if (event.target.closest("[data-submit-on-change]")) { event.target.form.requestSubmit(); }
  });
  document.addEventListener("htmx:load", function (event) { localise(event.detail.elt); });
  localise(document);
  document.querySelectorAll("nav [aria-current=page]").forEach(function (link) {
    var bar = link.parentElement;
    if (bar.scrollWidth > bar.clientWidth) { bar.scrollLeft = link.offsetLeft - bar.offsetLeft - 16; }
  });
  document.querySelectorAll("[data-print]").forEach(function (button) { button.hidden = false; });
}());
