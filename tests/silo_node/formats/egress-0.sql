PRAGMA user_version=0;
BEGIN TRANSACTION;
CREATE TABLE sent(
 id INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, method TEXT NOT NULL, path TEXT NOT NULL,
 round TEXT, bytes INTEGER NOT NULL, digest TEXT NOT NULL, status INTEGER);
INSERT INTO "sent" VALUES(1,'2026-11-25T03:19:14.114Z','update','PUT','/api/v1/rounds/st-1.1.1/update/0','st-1.1.1',4096,'sha256:00',200);
CREATE TABLE total(
 kind TEXT PRIMARY KEY, requests INTEGER NOT NULL, bytes_up INTEGER NOT NULL, bytes_down INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "total" VALUES('poll',1,200,0);
INSERT INTO "total" VALUES('update',1,4396,2);
CREATE INDEX sent_round ON sent(round);
COMMIT;
