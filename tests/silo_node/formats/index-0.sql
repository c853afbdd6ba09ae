PRAGMA user_version=0;
BEGIN TRANSACTION;
CREATE TABLE files (
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    sop TEXT, patient TEXT, study TEXT, series TEXT, modality TEXT,
    rows INTEGER, columns INTEGER, frames INTEGER, transfer_syntax TEXT, problem TEXT);
INSERT INTO "files" VALUES('a/b.dcm',10,20,'1.2.3','PAT-0001','1.2','1.3','DX',8,8,1,'1.2.840.10008.1.2.1',NULL);
INSERT INTO "files" VALUES('c.dcm',0,20,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'NOT_DICOM');
INSERT INTO "files" VALUES('/silo/inbox/ab/abcd.dcm',10,20,'1.2.4','PAT-0002','1.2','1.3','DX',8,8,1,'1.2.840.10008.1.2.1',NULL);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "meta" VALUES('root','/data');
CREATE INDEX files_by_sop ON files (sop);
CREATE INDEX files_by_patient ON files (patient);
COMMIT;
